"""One run, from its resolved config to the folder that it leaves."""
