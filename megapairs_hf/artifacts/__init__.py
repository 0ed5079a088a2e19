"""Artifacts: folders that a stage writes and others read; the storage, local or remote, that they lie in."""
