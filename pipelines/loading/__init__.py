"""Load a diffusers pipeline: files, parts, embeddings, off-loading."""
