"""What a running loader does with a result: follow memory, throughput and load, and say when to tune again."""
