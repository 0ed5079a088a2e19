"""Cards with numbers that were measured, and pushes to the Hub."""
