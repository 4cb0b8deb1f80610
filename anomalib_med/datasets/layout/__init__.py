"""How a public data set lies on disk, as its ``dataset.toml`` describes it, and how it becomes samples."""
