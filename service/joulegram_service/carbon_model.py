"""From configuration to what prices energy: a declared factor, a region of a table, or the reason there is neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError, RegionError, TableError
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.regions import resolve, resolve_in
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.intensity.table import load_table
from joulegram_processor.join import CarbonModel
from joulegram_processor.runs import Identity

if TYPE_CHECKING:
    from joulegram_service.config import Config, FactorConfig

NO_REGION = "region_not_configured"


def build_carbon(config: Config) -> tuple[CarbonModel, Identity]:
    """Resolve region and table, or take the declared factor, which goes before a table (S0-55, C-06).

    Raises:
        ConfigError: quoting the key whose region or table cannot be used.
    """
    carbon, host = config.carbon, config.host
    if carbon.factor is not None:
        factor = _declared(config, carbon.factor)
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
    for index, directory in enumerate(carbon.table_dirs):
        if not directory.is_dir():
            raise ConfigError(f"carbon.table_dirs[{index}]", str(directory), "a directory that exists")
    try:
        if carbon.table is None:
            resolved = resolve(carbon.region, extra_dirs=carbon.table_dirs)
            table = load_table(resolved.table_id, extra_dirs=carbon.table_dirs)
        else:
            table_id, _, version = carbon.table.partition("@")
            table = load_table(table_id, version or None, carbon.table_dirs)
            resolved = resolve_in(carbon.region, table)
    except RegionError as error:
        key = config.said("carbon", "region")
        raise ConfigError(key, carbon.region, f"a region of the tables ({error})") from error
    except TableError as error:
        key, got = config.said("carbon", "table"), carbon.table
        raise ConfigError(key, got, f"a table that is there and whole ({error})") from error
    chain = IntensityChain(table, resolved.key)
    return CarbonModel(chain, region=resolved.key), Identity(
        hw_id=host.hw_id,
        hw_name=host.hw_name,
        gas=chain.gas,
        region=resolved.path,
        factor_source=chain.source,
        tables=(chain.ref,),
    )


def _declared(config: Config, factor: FactorConfig) -> StaticFactor:
    try:
        return StaticFactor(factor.kg_per_kwh, factor.source)
    except ConfigError as error:
        # The processor names its own arguments; the user has to find the key he wrote.
        name = "source" if error.key.endswith("source") else "kg_per_kwh"
        raise ConfigError(config.said("carbon", "factor", name), error.got, error.expected) from error
