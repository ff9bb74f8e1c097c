"""Offline HTML pages: charts as SVG, with style and script in the page."""
