"""The page on which an index is searched: our own routes for images and queries, and Gradio for what is clicked."""
