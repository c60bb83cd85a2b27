"""From configuration to what prices energy: a declared factor, a region of a table, or the reason there is neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError, RegionError, TableError
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.regions import resolve
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.intensity.table import load_table
from joulegram_processor.join import CarbonModel
from joulegram_processor.runs import Identity

if TYPE_CHECKING:
    from joulegram_service.config import Config

NO_REGION = "region_not_configured"


def build_carbon(config: Config) -> tuple[CarbonModel, Identity]:
    """Resolve region and table, or take the declared factor, which goes before a table (S0-55, C-06).

    Raises:
        ConfigError: quoting the key whose region or table cannot be used.
    """
    carbon, host = config.carbon, config.host
    if carbon.factor is not None:
        factor = StaticFactor(str(carbon.factor.kg_per_kwh), carbon.factor.source)
        return CarbonModel(factor), Identity(
            hw_id=host.hw_id,
            hw_name=host.hw_name,
            gas=factor.gas,
            region=None,
            factor_source=factor.source,
            tables=(factor.ref,),
        )
    if carbon.region is None:
        return CarbonModel(None, NO_REGION), Identity(
            hw_id=host.hw_id, hw_name=host.hw_name, gas=None, region=None, factor_source=NO_REGION, tables=()
        )
    try:
        resolved = resolve(carbon.region, carbon.table, carbon.table_dirs)
        table = load_table(resolved.table_id, extra_dirs=carbon.table_dirs)
    except RegionError as error:
        raise ConfigError("carbon.region", carbon.region, f"a region of the tables ({error})") from error
    except TableError as error:
        raise ConfigError("carbon.table", carbon.table, f"a table that is whole ({error})") from error
    chain = IntensityChain(table, resolved.key)
    return CarbonModel(chain, region=resolved.key), Identity(
        hw_id=host.hw_id,
        hw_name=host.hw_name,
        gas=chain.gas,
        region=resolved.path,
        factor_source=chain.source,
        tables=(chain.ref,),
    )
