"""The explorer: a page on which rows of artifacts and data sets are read, filtered and marked."""
