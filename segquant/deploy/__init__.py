"""Everything that leaves the library: other tools' files and engines."""
