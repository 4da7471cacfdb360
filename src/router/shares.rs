//! Fair shares of the flows: per tenant, and within a tenant per instance.
//!
//! Only claimers that are connected take part. The share of a tenant is the limit divided by the tenants, the share of an
//! instance is that of its tenant divided by the tenant's instances. When the table is full,
//!
//! * a claim by an instance, or of a tenant, below its share displaces a flow of the instance with most flows, of the tenant
//!   with most flows. As the table is full, both are above their shares. A tie goes against the claimer's own tenant;
//! * any other claim displaces a flow of the claimer's own instance.
//!
//! So who stays below its share is never refused, and loses nothing to others.

use std::collections::HashMap;

use slab::Slab;

use super::Tenant;

/// An instance (a tcpcopy process) of a tenant, as long as it has claimers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct InstanceId(usize);

#[derive(Debug)]
struct Instance {
    name: (usize, u64),
    /// Its claimers, connected or not.
    owners: usize,
    /// Those that are connected, and how many flows they have.
    connected: Vec<usize>,
    flows: usize,
}

#[derive(Debug)]
struct Account {
    tenant: Tenant,
    instances: usize,
    /// Those with a claimer that is connected, and how many flows such claimers have.
    connected: Vec<InstanceId>,
    flows: usize,
}

/// Tenants, their instances, and what they have.
#[derive(Debug, Default)]
pub(super) struct Shares {
    tenants: Slab<Account>,
    by_tenant: HashMap<Tenant, usize>,
    instances: Slab<Instance>,
    by_name: HashMap<(usize, u64), InstanceId>,
    /// Tenants with a claimer that is connected.
    connected: usize,
}

impl Shares {
    /// A claimer of an instance comes into being. It is not connected.
    pub(super) fn add(&mut self, tenant: Tenant, instance: u64) -> InstanceId {
        let Self { tenants, by_tenant, instances, by_name, .. } = self;
        let account = *by_tenant.entry(tenant).or_insert_with(|| {
            tenants.insert(Account { tenant, instances: 0, connected: Vec::new(), flows: 0 })
        });
        let name = (account, instance);
        let id = *by_name.entry(name).or_insert_with(|| {
            if let Some(account) = tenants.get_mut(account) {
                account.instances += 1;
            }
            InstanceId(instances.insert(Instance { name, owners: 0, connected: Vec::new(), flows: 0 }))
        });
        if let Some(instance) = instances.get_mut(id.0) {
            instance.owners += 1;
        }
        id
    }

    /// A claimer, which is not connected, is no more.
    pub(super) fn remove(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(id.0) else { return };
        instance.owners -= 1;
        if instance.owners > 0 {
            return;
        }
        let name = instance.name;
        self.instances.remove(id.0);
        self.by_name.remove(&name);
        let Some(account) = self.tenants.get_mut(name.0) else { return };
        account.instances -= 1;
        if account.instances == 0 {
            let account = self.tenants.remove(name.0);
            self.by_tenant.remove(&account.tenant);
        }
    }

    /// A claimer, by its number, with so many flows is connected.
    pub(super) fn connected(&mut self, id: InstanceId, owner: usize, flows: usize) {
        let Some(instance) = self.instances.get_mut(id.0) else { return };
        instance.flows += flows;
        instance.connected.push(owner);
        let Some(account) = self.tenants.get_mut(instance.name.0) else { return };
        account.flows += flows;
        if instance.connected.len() == 1 {
            account.connected.push(id);
            if account.connected.len() == 1 {
                self.connected += 1;
            }
        }
    }

    /// A claimer with so many flows is no longer connected.
    pub(super) fn disconnected(&mut self, id: InstanceId, owner: usize, flows: usize) {
        let Some(instance) = self.instances.get_mut(id.0) else { return };
        instance.flows -= flows;
        instance.connected.retain(|each| *each != owner);
        let Some(account) = self.tenants.get_mut(instance.name.0) else { return };
        account.flows -= flows;
        if instance.connected.is_empty() {
            account.connected.retain(|each| *each != id);
            if account.connected.is_empty() {
                self.connected -= 1;
            }
        }
    }

    /// A claimer that is connected has one flow more.
    pub(super) fn gain(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(id.0) else { return };
        instance.flows += 1;
        if let Some(account) = self.tenants.get_mut(instance.name.0) {
            account.flows += 1;
        }
    }

    /// A claimer that is connected has one flow less.
    pub(super) fn lose(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(id.0) else { return };
        instance.flows -= 1;
        if let Some(account) = self.tenants.get_mut(instance.name.0) {
            account.flows -= 1;
        }
    }

    /// The flows of an instance, and its share of so many.
    pub(super) fn standing(&self, id: InstanceId, limit: usize) -> (usize, usize) {
        let Some(instance) = self.instances.get(id.0) else { return (0, 0) };
        let instances = self.tenants.get(instance.name.0).map_or(1, |account| account.connected.len());
        (instance.flows, self.share_of_tenant(limit) / instances.max(1))
    }

    /// The instance that a full table takes a flow from when `id` claims one more: the claimer's own if the claimer has
    /// its share.
    pub(super) fn displaced_by(&self, id: InstanceId, limit: usize) -> InstanceId {
        let Some(own) = self.instances.get(id.0).map(|instance| instance.name.0) else { return id };
        let tenant_flows = self.tenants.get(own).map_or(0, |account| account.flows);
        let (flows, share) = self.standing(id, limit);
        if flows >= share && tenant_flows >= self.share_of_tenant(limit) {
            return id;
        }
        let tenants = self.tenants.iter();
        let fullest = tenants.max_by_key(|(number, account)| (account.flows, *number == own));
        let instances = fullest.map(|(_, account)| account.connected.iter().copied()).into_iter().flatten();
        let flows = |id: &InstanceId| self.instances.get(id.0).map_or(0, |instance| instance.flows);
        instances.max_by_key(flows).unwrap_or(id)
    }

    /// The claimers of an instance that are connected.
    pub(super) fn owners(&self, id: InstanceId) -> impl Iterator<Item = usize> + '_ {
        self.instances.get(id.0).into_iter().flat_map(|instance| instance.connected.iter().copied())
    }

    fn share_of_tenant(&self, limit: usize) -> usize {
        limit / self.connected.max(1)
    }
}
