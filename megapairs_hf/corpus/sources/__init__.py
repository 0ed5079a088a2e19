"""Where a corpus comes from: image folders, data sets, parquet, WebDataset, synthetic scenes."""
