"""Pictures of a pipeline: one self-contained HTML page (`stage.py`), and any artifact as plain text (`inspect.py`)."""
