"""Metrics, logging, tracing."""
