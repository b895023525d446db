"""A mapping from a header alone: our own names, then names that other systems use, then names that are near to those.

Guesses are shown to the person and can be saved; an import with a mapping guesses nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from infra.importing.mapping import FIELDS_BY_KIND, ColumnMap
from infra.importing.reading import MERCHANT_FEED, SCHEMA_ORG, ImportFile
from infra.importing.report import Options

NEAR = 0.86
_SHORTEST_NEAR = 5
_NEVER_NEAR = ("items", "context", "properties", "consent", "attributes")

_USER = (
    "user uid customerid customer customerno customernumber custid clientid memberid member accountid buyerid shopperid"
)
_ITEM = "item sku productid product productno stockcode articleid article articleno itemno variantid productsku asin"
_ALIASES: Mapping[str, Mapping[str, str]] = {
    "events": {
        "event_id": "messageid insertid uuid orderlineid orderline lineid id",
        "event_type": "event eventname type action activity behavior behaviour interaction interactiontype",
        "user_id": _USER,
        "anonymous_id": "visitorid deviceid cookieid browserid userpseudoid gaclientid",
        "session_id": "session sid visitid gasessionid invoiceno invoiceid invoice orderid orderno basketid",
        "item_id": _ITEM,
        "timestamp": "time ts datetime eventtime eventtimestamp occurredat createdat orderedat orderdate invoicedate "
        "purchasedat date unixtime timestampms",
        "quantity": "qty units count",
        "price": "unitprice itemprice pricepaid",
        "value": "revenue total totalprice linetotal amount",
        "currency": "currencycode",
    },
    "items": {
        "item_id": f"{_ITEM} id",
        "title": "name productname itemname producttitle description",
        "category": "producttype categorypath categoryname categorycode department genre genres breadcrumb "
        "googleproductcategory",
        "brand": "manufacturer vendor maker brandname",
        "price": "unitprice listprice regularprice itemprice",
        "currency": "currencycode pricecurrency",
        "availability": "stockstatus availabilitystatus",
        "available_quantity": "stock stocklevel stockquantity inventory inventoryquantity quantityavailable onhand qty "
        "quantity",
        "created_at": "created datecreated dateadded addedat publishedat releasedate",
        "updated_at": "updated modified modifiedat lastmodified dateupdated datemodified",
        "expire_time": "expirationdate expiresat expires validuntil",
        "available_time": "availabilitydate availablefrom",
        "group_id": "itemgroupid parentid parentsku productgroupid",
        "tags": "keywords labels",
        "language": "lang locale contentlanguage",
        "url": "link producturl permalink",
        "image_url": "image imagelink imgurl imageurl imagesrc picture thumbnail",
        "is_hidden": "hidden",
    },
    "users": {
        "user_id": f"{_USER} id",
        "region": "country countrycode state market",
        "created_at": "created registeredat signupdate signupat joinedat datejoined firstseen",
        "updated_at": "updated modified modifiedat lastmodified",
    },
}


def mapping_for(
    kind: str, file: ImportFile, names: Sequence[str], column_map: ColumnMap | None, options: Options
) -> ColumnMap:
    """The mapping given, or, when none is given and it is wanted, a guess. Feeds have names of their own."""
    if column_map is not None:
        return column_map
    if not options.guess or file.form in (MERCHANT_FEED, SCHEMA_ORG):
        return ColumnMap(kind=kind)
    return ColumnMap(
        columns=guess_columns(kind, names), kind=kind, format=options.input_format, encoding=options.encoding,
        delimiter=options.delimiter,
    )  # fmt: skip


def guess_columns(kind: str, names: Sequence[str]) -> dict[str, str]:
    """Our field -> their column. A column is taken once, in the order of the fields; our own names are never mapped."""
    plain = {name: _plain(name) for name in names}
    free = [name for name in names if name not in FIELDS_BY_KIND[kind]]
    found: dict[str, str] = {}
    for field in FIELDS_BY_KIND[kind]:
        if field in names or (field == "category" and "categories" in names):
            continue
        for wanted in (_plain(field), *_ALIASES[kind].get(field, "").split()):
            column = next((name for name in free if plain[name] == _plain(wanted)), None)
            if column is not None:
                found[field] = column
                free.remove(column)
                break
    for field in FIELDS_BY_KIND[kind]:
        if field in names or field in found or field in _NEVER_NEAR or field.startswith("consent_"):
            continue
        aliases = _ALIASES[kind].get(field, "").split()
        wanted_names = [name for name in (_plain(field), *aliases) if len(name) >= _SHORTEST_NEAR]
        scored = [(max((_near(plain[name], w) for w in wanted_names), default=0.0), name) for name in free]
        best = max(scored, default=(0.0, ""), key=lambda pair: pair[0])
        if best[0] >= NEAR:
            found[field] = best[1]
            free.remove(best[1])
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _near(name: str, wanted: str) -> float:
    return difflib.SequenceMatcher(None, name, wanted).ratio() if len(name) >= _SHORTEST_NEAR else 0.0
