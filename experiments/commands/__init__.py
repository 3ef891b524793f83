"""The commands of fedshare, one file each."""
