"""Readers and writers of other tools' file formats."""
