"""The style that all HTML reports share, and class activation maps over pictures."""
