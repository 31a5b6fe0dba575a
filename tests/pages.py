"""Looks at a page's HTML without a browser."""

import html.parser

_VOID = ("meta", "br", "img", "link", "wbr")


class Page(html.parser.HTMLParser):
    """Collects tags, ids and links; fails on a tag that closes what is not open.

    Attributes:
      tags: names, in the order of the page.
      elements: (tag, attributes), likewise.
      links: of whatever a browser would load or go to.
      ids: all of them.
      text: between the tags.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.elements, self.links = [], [], []
        self.ids, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in _VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.elements.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def problems(self):
        """What readers with a screen reader, a slow network or none would stumble over."""
        found, level = [], 0
        for tag, attributes in self.elements:
            if tag == "img" and not {"alt", "width", "height"} <= attributes.keys():
                found.append(f"an image without text or size: {attributes.keys()}")
            if tag == "svg" and not attributes.get("aria-label"):
                found.append("a figure without text")
            if tag == "table" and not (
                attributes.get("class") == "sortable"
                and attributes.get("data-markdown")
                and attributes.get("data-latex")
            ):
                found.append("a table that neither sorts nor is copied")
            if tag in ("h1", "h2", "h3", "h4"):
                now = int(tag[1])
                if now > level + 1:
                    found.append(f"{tag} after h{level}")
                level = now
        if self.tags.count("h1") != 1:
            found.append(f"{self.tags.count('h1')} titles")
        return found
