"""From overrides to the objects of a run."""
