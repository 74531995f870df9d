"""A page to work with: `duolora ui` (`pip install 'duolora[ui]'`)."""
