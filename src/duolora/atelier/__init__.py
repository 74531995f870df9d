"""Atelier: the text-to-image world that ships inside the package, and the truth about its images."""
