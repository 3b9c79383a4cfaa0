//! Graphs: nodes with dependencies, and instantiated graphs, which run again and again on the memory as it then is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::codes::{Code, Result};
use super::engine::Engine;
use super::state::State;
use super::work::Work;

/// Nodes that a graph can have; more are refused as out of memory.
const LARGEST: usize = 1 << 20;

/// Device memory that a graph allocates; it lives as long as the graph and what was made of it.
#[derive(Debug)]
pub struct GraphMemory {
    engine: Arc<Engine>,
    /// Where.
    pub address: u64,
}

impl GraphMemory {
    /// Allocates it.
    pub fn new(engine: Arc<Engine>, bytes: u64) -> Result<Self> {
        let address = engine.memory.alloc(bytes).map_err(super::engine::refused)?;
        Ok(Self { engine, address })
    }
}

impl Drop for GraphMemory {
    fn drop(&mut self) {
        // It was allocated in `new` and nobody else frees it; a second free is an error value and no harm.
        let _ = self.engine.memory.free(self.address);
    }
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its handle.
    pub handle: u64,
    /// What it does.
    pub work: Work,
    /// Nodes that must be done before.
    pub dependencies: Vec<u64>,
}

/// A graph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// In the order of their making.
    pub nodes: Vec<Node>,
}

/// What runs when a graph is launched.
#[derive(Clone, Debug)]
pub struct Plan {
    steps: Vec<(Work, Vec<usize>)>,
}

/// An instantiated graph.
#[derive(Debug)]
pub struct Exec {
    /// What runs; launches that are queued keep the plan that they were made with.
    pub plan: Arc<Plan>,
    /// Places of the nodes of the graph that it was made from.
    pub places: HashMap<u64, usize>,
    /// Its context.
    pub context: u64,
}

impl Graph {
    /// Finds a node.
    pub fn node(&self, handle: u64) -> Option<&Node> {
        self.nodes.iter().find(|node| node.handle == handle)
    }

    /// Returns nodes and everything that they come after.
    pub fn ancestors(&self, nodes: &[u64]) -> HashSet<u64> {
        let by_handle: HashMap<u64, &Node> = self.nodes.iter().map(|node| (node.handle, node)).collect();
        let mut found = HashSet::new();
        let mut open = nodes.to_vec();
        while let Some(node) = open.pop() {
            if found.insert(node) {
                open.extend(
                    by_handle.get(&node).map(|node| node.dependencies.as_slice()).unwrap_or_default(),
                );
            }
        }
        found
    }

    /// Makes what runs; a cycle is an error.
    pub fn plan(&self) -> Result<Plan> {
        let places: HashMap<u64, usize> =
            self.nodes.iter().enumerate().map(|(i, node)| (node.handle, i)).collect();
        let place = |handle: &u64| places.get(handle).copied();
        let steps = self.nodes.iter().map(|node| {
            let dependencies: Option<Vec<usize>> = node.dependencies.iter().map(place).collect();
            let dependencies = dependencies
                .ok_or_else(|| Code::INVALID_VALUE.because("a dependency outside of the graph"))?;
            Ok((node.work.clone(), dependencies))
        });
        let plan = Plan { steps: steps.collect::<Result<_>>()? };
        match plan.order(0).len() == plan.steps.len() {
            true => Ok(plan),
            false => Err(Code::INVALID_VALUE.because("the graph has a cycle")),
        }
    }

    /// Instantiates it.
    pub fn instantiate(&self, context: u64) -> Result<Exec> {
        let places = self.nodes.iter().enumerate().map(|(i, node)| (node.handle, i)).collect();
        Ok(Exec { plan: Arc::new(self.plan()?), places, context })
    }
}

impl Plan {
    /// Returns an order that respects the dependencies, one of many by the seed; shorter than the plan if there is a cycle.
    fn order(&self, seed: u64) -> Vec<usize> {
        let mut waiting: Vec<usize> = self.steps.iter().map(|(_, dependencies)| dependencies.len()).collect();
        let mut followers = vec![Vec::new(); self.steps.len()];
        for (i, (_, dependencies)) in self.steps.iter().enumerate() {
            dependencies.iter().for_each(|d| followers[*d].push(i));
        }
        let mut ready: Vec<usize> = (0..self.steps.len()).filter(|i| waiting[*i] == 0).collect();
        let mut order = Vec::with_capacity(self.steps.len());
        let mut random = seed;
        while !ready.is_empty() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let next = ready.swap_remove((random >> 33) as usize % ready.len());
            order.push(next);
            for &follower in &followers[next] {
                waiting[follower] -= 1;
                if waiting[follower] == 0 {
                    ready.push(follower);
                }
            }
        }
        order
    }

    /// Runs it.
    pub fn run(&self, engine: &Engine, sequence: u64) -> Result<()> {
        let seed = engine.config.seed ^ sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.order(seed).into_iter().try_for_each(|i| self.steps[i].0.run(engine, sequence))
    }

    /// Returns the events that it records.
    pub fn records(&self) -> Vec<u64> {
        self.steps.iter().flat_map(|(work, _)| work.records()).collect()
    }
}

impl Exec {
    /// Replaces what a node does by work of the same kind.
    pub fn replace(&mut self, node: u64, work: Work) -> Result<()> {
        let place = self.places.get(&node).copied();
        let place = place
            .ok_or_else(|| Code::INVALID_VALUE.because("no node of the graph that this was made from"))?;
        let mut plan = Plan::clone(&self.plan);
        if plan.steps[place].0.node_type() != work.node_type() {
            return Err(Code::INVALID_VALUE.because("the node is of another type"));
        }
        plan.steps[place].0 = work;
        self.plan = Arc::new(plan);
        Ok(())
    }

    /// Takes over the parameters of a graph of the same shape; else returns `CUgraphExecUpdateResult` and the node that does
    /// not fit.
    pub fn update(&mut self, graph: &Graph) -> std::result::Result<(), (u32, u64)> {
        let plan = graph.plan().map_err(|_| (1, 0))?;
        if plan.steps.len() != self.plan.steps.len() {
            return Err((2, 0));
        }
        for (i, (new, old)) in plan.steps.iter().zip(&self.plan.steps).enumerate() {
            let node = graph.nodes[i].handle;
            if new.1 != old.1 {
                return Err((2, node));
            }
            if new.0.node_type() != old.0.node_type() {
                return Err((3, node));
            }
        }
        self.plan = Arc::new(plan);
        Ok(())
    }
}

/// Adds a node to a graph of the program's own making.
pub fn add_node(state: &mut State, graph: u64, dependencies: Vec<u64>, work: Work) -> Result<u64> {
    let handle = state.handle();
    let graph = state.graphs.get_mut(graph)?;
    if graph.nodes.len() >= LARGEST {
        return Err(Code::OUT_OF_MEMORY.because(format!("a graph of more than {LARGEST} nodes")));
    }
    check_dependencies(graph, &dependencies)?;
    graph.nodes.push(Node { handle, work, dependencies });
    Ok(handle)
}

/// Refuses dependencies that are no nodes of the graph, or that are there twice.
fn check_dependencies(graph: &Graph, dependencies: &[u64]) -> Result<()> {
    let mut seen = HashSet::new();
    match dependencies.iter().find(|d| graph.node(**d).is_none() || !seen.insert(**d)) {
        Some(node) => {
            Err(Code::INVALID_VALUE
                .because(format!("dependency {node:#x} is no node of the graph, or twice")))
        }
        None => Ok(()),
    }
}

/// Finds the graph of a node.
pub fn graph_of(state: &State, node: u64) -> Result<u64> {
    let found = state.graphs.iter().find(|(_, graph)| graph.node(node).is_some());
    found
        .map(|(handle, _)| handle)
        .ok_or_else(|| Code::INVALID_VALUE.because(format!("{node:#x} is no node of a graph")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diamond() -> Graph {
        let node = |handle, dependencies| Node { handle, work: Work::Nothing, dependencies };
        Graph { nodes: vec![node(1, vec![]), node(2, vec![1]), node(3, vec![1]), node(4, vec![2, 3])] }
    }

    #[test]
    fn orders_respect_dependencies_and_both_branches_come_first_at_times() {
        let plan = diamond().plan().unwrap();
        let orders: HashSet<Vec<usize>> = (0..64).map(|seed| plan.order(seed)).collect();
        assert_eq!(orders, HashSet::from([vec![0, 1, 2, 3], vec![0, 2, 1, 3]]));
    }

    #[test]
    fn cycles_are_refused() {
        let mut graph = diamond();
        graph.nodes[0].dependencies.push(4);
        assert_eq!(graph.plan().unwrap_err().code, Code::INVALID_VALUE);
    }

    #[test]
    fn an_update_of_another_shape_names_the_node() {
        let mut exec = diamond().instantiate(0).unwrap();
        let mut other = diamond();
        assert_eq!(exec.update(&other), Ok(()));
        other.nodes[3].dependencies.pop();
        assert_eq!(exec.update(&other), Err((2, 4)));
        let mut other = diamond();
        other.nodes[2].work = Work::Record(7);
        assert_eq!(exec.update(&other), Err((3, 3)));
    }
}
