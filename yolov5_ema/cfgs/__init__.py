"""Model YAMLs: reading, checking, trial builds and writing."""
