"""Images of a pipeline: one self-contained HTML page (`page.py`), and any artifact as plain text (`inspect.py`)."""
