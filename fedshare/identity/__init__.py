"""Who somebody is: certificates and keys, who may take part, whose a folder is."""
