"""The commands of fedshare, a file each."""
