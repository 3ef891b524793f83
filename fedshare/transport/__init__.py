"""How messages reach clients on other hosts, and who is waited for."""
