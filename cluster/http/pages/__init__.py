"""The status page at /-/: how the cluster does, for people, as HTML that needs nothing but this server.

sight.py     what somebody may see of it
lookout.py   one look at the cluster for all who ask at about the same time
charts.py    figures as lines and bars (pure)
words.py     times, sizes and object ids as people read them (pure)
render.py    templates, and what goes with every page: security headers, errors as pages
guard.py     whether a form was sent by a page of ours
looking.py   the pages that are read
signing.py   signing in and out
doing.py     sync, verify and thaw
"""

from __future__ import annotations

from starlette.routing import BaseRoute

from cluster.http.pages import doing, looking, signing
from cluster.http.pages.looking import to_page as to_page
from cluster.http.pages.render import Pages
from cluster.http.site import Site


def routes(site: Site) -> list[BaseRoute]:
    pages = Pages(site)
    return [*looking.routes(pages), *signing.routes(pages), *doing.routes(pages), *pages.static()]
