"""What a flight's log says: `table` is the one form, a file for each format reads into it."""
