"""What the DAGs hand to one another. No DAG that writes an asset is started by something that depends on it.

catalogue        bronze.items, bronze.users and bronze.events_import; written by sync_catalogue, read by the night
gold_features    gold.user_features and gold.item_features; written by the night and by rederive_features
night_tables     all tables of a night, complete; written when a night ends, starts maintain_tables
recommendations  what is served; changed by a night that publishes, by a rollback and by a promotion
"""

from __future__ import annotations

from airflow.sdk import Asset

CATALOGUE = Asset(name="catalogue", uri="x-nightjar://bronze/catalogue", group="nightjar")
GOLD_FEATURES = Asset(name="gold_features", uri="x-nightjar://gold/features", group="nightjar")
NIGHT_TABLES = Asset(name="night_tables", uri="x-nightjar://night/tables", group="nightjar")
RECOMMENDATIONS = Asset(name="recommendations", uri="x-nightjar://online/recommendations", group="nightjar")
