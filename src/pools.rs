//! Pools as the configuration has them, brought to the store.

use anyhow::anyhow;

use crate::desk::Desk;
use crate::recipe;
use crate::settings::PoolSettings;

/// Makes the pools of a configuration what it says. Nothing is asked where it names none.
pub async fn configure(desk: &Desk, pools: &[PoolSettings]) -> anyhow::Result<()> {
    if pools.is_empty() {
        return Ok(());
    }
    let mut pools = pools.to_vec();
    for pool in &mut pools {
        if let Some(generator) = &mut pool.definition.generator {
            let inputs = serde_json::to_string(&generator.inputs)?;
            let needs = serde_json::to_string(&generator.needs)?;
            generator.fingerprint = recipe::of_command(&[&generator.run, &inputs, &needs], &pool.inputs)?;
        }
    }
    desk.ask(move |session| {
        for pool in pools {
            session.board.configure(&pool.name, &pool.definition, pool.items);
        }
    })
    .await
    .map_err(|error| anyhow!("the pools of the configuration cannot be written: {error}"))
}
