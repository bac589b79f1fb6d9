"""Comparing methods: a suite of training runs, what each reached, and tables and curves of them all."""
