"""Tables and HTML pages from run folders. They need no GPU and no model."""
