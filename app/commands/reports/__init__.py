"""The style that all HTML reports share."""
