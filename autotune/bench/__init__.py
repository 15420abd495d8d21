"""Times a model's products on this host: cold, interleaved, in a child process per device. Entry: `campaign.run`."""
