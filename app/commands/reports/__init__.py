"""The look that all HTML reports share."""
