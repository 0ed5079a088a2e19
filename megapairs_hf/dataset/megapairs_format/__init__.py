"""The released format of MegaPairs: read, imported and exported."""
