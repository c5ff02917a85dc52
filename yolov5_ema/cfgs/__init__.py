"""Model YAMLs: read, checked, built for trial and written."""
