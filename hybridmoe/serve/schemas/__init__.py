"""What requests and answers look like, one module for each API."""
