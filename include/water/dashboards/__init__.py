"""What people look at: the live board of the network."""
