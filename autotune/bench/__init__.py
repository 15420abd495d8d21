"""Times the sites of a model on this host, cold, interleaved and pinned, in a child process. Entry point: `campaign.run`."""
