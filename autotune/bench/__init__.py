"""Times a model's products on this host: cold, interleaved, pinned, in a child process. Entry: `campaign.run`."""
