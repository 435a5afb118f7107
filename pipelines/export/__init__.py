"""`segquant-export`: saved quantized models as other tools' files."""
