"""From a config.json, a GGUF file or a preset to layers, sites and a memory plan. Entry point: `analyse.analyse`."""
