"""schema.org products as JSON-LD: a document (Product, list, ItemList, @graph, ProductGroup, DataFeed), or one a line.

Source: https://schema.org/Product, https://developers.google.com/search/docs/appearance/structured-data/product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PRODUCT_TYPES = frozenset(
    {"Product", "IndividualProduct", "ProductModel", "SomeProducts", "Vehicle", "Car", "Book", "Movie", "Drug"}
)
_CONTAINERS = ("@graph", "itemListElement", "item", "hasVariant", "dataFeedElement", "mainEntity")
_USED = {
    "@context", "@type", "@id", "sku", "productID", "name", "category", "brand", "offers", "url", "image",
    "inProductGroupWithID", "isVariantOf", "keywords", "inLanguage", "dateModified", "dateCreated", "datePublished",
    "releaseDate", "additionalProperty", "hasVariant",
}  # fmt: skip
MAX_DEPTH = 20


def is_schema_org(document: Any) -> bool:
    """Whether a JSON value says of itself that it is JSON-LD."""
    if isinstance(document, list):
        return any(is_schema_org(entry) for entry in document[:1])
    return isinstance(document, Mapping) and bool({"@type", "@graph", "@context"} & document.keys())


def products_in(document: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Every product of a document, in order. A ProductGroup's variants are products, with the group's facts; a group
    without variants is a product itself. Other things (Organization, BreadcrumbList ...) are none."""
    if depth > MAX_DEPTH:
        return
    if isinstance(document, list):
        for entry in document:
            yield from products_in(entry, depth + 1)
    elif isinstance(document, Mapping):
        kinds = _kinds(document)
        if "ProductGroup" in kinds:
            yield from _variants(document)
        elif kinds & _PRODUCT_TYPES:
            yield document
        else:
            for name in _CONTAINERS:
                if name in document:
                    yield from products_in(document[name], depth + 1)


def item_of(product: Mapping[str, Any]) -> dict[str, Any]:
    """A product with our fields, for `check_item`.

    item_id     sku, else productID, else @id, else gtin, else mpn
    price       of the first offer (its lowPrice when it is an aggregate, its priceSpecification when it has no price)
    category    a text "A > B" ("A/B" stays as it is), or the name of a CategoryCode; of several the first
    attributes  additionalProperty by name, and every property without a field of its own
    """
    names = ("sku", "productID", "@id", "gtin", "gtin13", "gtin12", "gtin14", "gtin8", "mpn")
    item_id = next((product[n] for n in names if product.get(n) not in (None, "")), None)
    offer = _first(product.get("offers"))
    offer = offer if isinstance(offer, Mapping) else {}
    inner = _first(offer.get("offers"))
    availability = offer.get("availability") or (inner.get("availability") if isinstance(inner, Mapping) else None)
    priced = _first(offer.get("priceSpecification")) if offer.get("price") is None else None
    priced = priced if isinstance(priced, Mapping) else {}
    group = _first(product.get("isVariantOf"))
    properties = product.get("additionalProperty") or []
    named = {
        str(p["name"]): p.get("value")
        for p in (properties if isinstance(properties, list) else [properties])
        if isinstance(p, Mapping) and p.get("name")
    }
    attributes = {**{name: value for name, value in product.items() if name not in _USED}, **named}
    item: dict[str, Any] = {
        "item_id": str(item_id) if isinstance(item_id, int) and not isinstance(item_id, bool) else item_id,
        "title": _name(product.get("name")),
        "category": _path(product.get("category")),
        "brand": _name(product.get("brand")),
        "price": _number(_either(offer.get("price"), offer.get("lowPrice"), priced.get("price"))),
        "currency": _either(offer.get("priceCurrency"), priced.get("priceCurrency")),
        "availability": availability,
        "available_quantity": _level(offer.get("inventoryLevel")),
        "available_time": offer.get("availabilityStarts"),
        "expire_time": offer.get("availabilityEnds"),
        "url": _either(_address(product.get("url")), _address(offer.get("url"))),
        "image_url": _address(product.get("image")),
        "group_id": _either(
            product.get("inProductGroupWithID"), group.get("productGroupID") if isinstance(group, Mapping) else None
        ),
        "tags": product.get("keywords") or None,
        "language": _name(product.get("inLanguage")),
        "created_at": _either(product.get("dateCreated"), product.get("datePublished"), product.get("releaseDate")),
        "updated_at": product.get("dateModified"),
        "attributes": attributes or None,
    }
    return {name: value for name, value in item.items() if value is not None}


def _kinds(document: Mapping[str, Any]) -> set[str]:
    said = document.get("@type")
    kinds = said if isinstance(said, list) else [said]
    return {k.rpartition("/")[2].rpartition(":")[2] for k in kinds if isinstance(k, str)}


def _variants(group: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    shared = {
        k: v for k, v in group.items() if k not in ("@type", "@id", "hasVariant", "variesBy", "productGroupID", "sku")
    }
    variants = group.get("hasVariant")
    variants = variants if isinstance(variants, list) else [variants] if variants else []
    told = [variant for variant in variants if isinstance(variant, Mapping)]
    if not told:
        yield {**group, "productID": group.get("productID") or group.get("productGroupID")}
    for variant in told:
        yield {**shared, "inProductGroupWithID": group.get("productGroupID") or group.get("@id"), **variant}


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def _either(*values: Any) -> Any:
    return next((value for value in values if value not in (None, "")), None)


def _name(value: Any) -> Any:
    value = _first(value)
    if isinstance(value, Mapping):
        return value.get("name") or value.get("@value")
    return value


def _path(value: Any) -> Any:
    name = _name(value)
    return " > ".join(part.strip() for part in name.split(">")) if isinstance(name, str) and ">" in name else name


def _address(value: Any) -> Any:
    value = _first(value)
    if isinstance(value, Mapping):
        return _either(value.get("url"), value.get("contentUrl"), value.get("@id"))
    return value


def _number(value: Any) -> Any:
    """schema.org prices may be texts: "19.99". Others stay and are refused."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _level(value: Any) -> Any:
    value = _first(value)
    value = value.get("value") if isinstance(value, Mapping) else value
    return int(value) if isinstance(value, str) and value.isdigit() else value
