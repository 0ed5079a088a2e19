"""What every other folder uses and what uses none: settings, errors, schemas, processes, progress."""
