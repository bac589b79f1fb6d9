"""Comparison of methods: runs a suite of trainings, and makes tables and curves of their results."""
