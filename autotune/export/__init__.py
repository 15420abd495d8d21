"""A saved result in the words of other runtimes: command lines, environments, configuration files."""
