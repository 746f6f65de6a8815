"""Parses a report strictly, every tag closed: its tables and its data."""

import html.parser
import json

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(html.parser.HTMLParser):
  """A report that was read.

  Attributes:
    ids: ids of all elements.
    links: targets of links within the page.
    addresses: values of attributes that load something.
    elements: (name, attributes) of all elements.
    tables: texts of the cells, by the caption or (without) the first title.
    sections: text of each section, by id.
    text: all text outside scripts and styles.
  """

  def __init__(self, text: str):
    """Parses a page; fails where a tag is not closed."""
    super().__init__(convert_charrefs=True)
    self.ids, self.links, self.addresses, self.elements = [], [], [], []
    self.tables, self.sections, self.text, self.scripts = {}, {}, "", {}
    self._open, self._rows, self._caption, self._script = [], None, "", ""
    self._section = ""
    self.feed(text)
    self.close()
    assert not self._open, f"not closed: {self._open}"

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.elements.append((tag, attributes))
    if "id" in attributes:
      self.ids.append(attributes["id"])
    for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
      if name in attributes:
        inside = attributes[name].startswith("#")
        (self.links if inside else self.addresses).append(attributes[name])
    if tag not in VOID:
      self._open.append(tag)
    if tag == "table":
      self._rows, self._caption = [], ""
    elif tag == "tr":
      self._rows.append([])
    elif tag in ("th", "td"):
      self._rows[-1].append("")
    elif tag == "section":
      self._section = attributes["id"]
      self.sections[self._section] = ""
    elif tag == "script":
      self._script = attributes.get("id", "code")
      self.scripts[self._script] = ""

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in VOID:
      self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self._open[-1:] == [tag], (tag, self._open)
    self._open.pop()
    if tag == "table":
      self.tables[self._caption or self._rows[0][0]] = self._rows
    elif tag == "section":
      self._section = ""

  def handle_data(self, data):
    if "script" in self._open:
      self.scripts[self._script] += data
      return
    if "style" in self._open:
      return
    self.text += data
    if self._section:
      self.sections[self._section] += data
    if "caption" in self._open:
      self._caption += data
    elif ("td" in self._open or "th" in self._open) and self._rows:
      self._rows[-1][-1] += data

  @property
  def questions(self):
    """The value that the script shows."""
    return json.loads(self.scripts["question-data"])
