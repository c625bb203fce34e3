//! A place of files with their manifests, as `apply` goes through it: from one export to the one that names it as the one before.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use crate::apply::input::Input;
use crate::job::ConsumerId;
use crate::manifest::{self, Manifest};
use crate::sink::{Archive, Found, Settings};
use anyhow::{Context, bail};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::command::feed::{Taken, Taker};
use crate::command::mirror::Mirror;
use crate::command::plain::{plain, tell};

/// How many other lanes of a place are named.
const MOST_OTHERS: usize = 10;

/// The lane of a place.
pub(super) struct Shelf {
    place: Settings,
    consumer: ConsumerId,
    dataset: String,
}

/// A lane's export, as far as it is to be found.
struct Link {
    name: String,
    number: u64,
    digest: String,
    previous: Option<String>,
    is_base: bool,
}

impl Shelf {
    pub(super) fn new(place: Settings, consumer: ConsumerId, dataset: String) -> Shelf {
        Shelf { place, consumer, dataset }
    }

    /// Applies what is there, one export after the other.
    pub(super) async fn round(&self, mirror: &mut Mirror) -> anyhow::Result<()> {
        let (place, runtime) = (self.place.clone(), Handle::current());
        let archive = spawn_blocking(move || Archive::open(&place, &runtime)).await?;
        let archive = Arc::new(archive.with_context(|| self.place.to_string())?);
        let (links, others) = self.links(&archive).await?;
        let mut following = HashMap::<&str, Vec<&Link>>::new();
        for link in &links {
            if let Some(previous) = &link.previous {
                following.entry(previous).or_default().push(link);
            }
        }
        if links.is_empty() && mirror.last().is_none() {
            let others = others.into_iter().collect::<Vec<_>>().join(", ");
            let others =
                if others.is_empty() { "no manifests at all".to_owned() } else { format!("those of {others}") };
            bail!(
                "no_exports: {} has no manifest of an export of {} of the consumer {}, but {others}",
                self.place,
                self.dataset,
                self.consumer
            );
        }
        let at = mirror.last().map(|last| (last.digest.clone(), last.number));
        let mut numbers = HashSet::new();
        if at.is_none()
            && let Some(twice) = links.iter().find(|link| !numbers.insert(link.number))
        {
            bail!(
                "forked: {} has the number {} twice, as after a restore of the source: take away the manifests that are not of the source as \
                 it is now, or take the exports from the service",
                self.place,
                twice.number
            );
        }
        if let (None, Some((digest, _))) = (self.next(&links, &following, at.as_ref())?, &at)
            && let Some(base) = beside(&links, digest)
        {
            bail!(
                "forked: {} has a full export, number {}, that doesn't come before what the table has, as after a restore of the source: remove \
                 the table and its row of cdc_apply.positions to begin with it",
                self.place,
                base.number
            );
        }
        let mut next = self.next(&links, &following, at.as_ref())?;
        while let Some(link) = next {
            match self.apply(&archive, link, mirror).await? {
                Taken::Done => {}
                Taken::Unfit(why) => match newest_base(&links).filter(|base| base.number > link.number) {
                    Some(base) => {
                        tell(&format!("{why}; going on with the full export {}", base.number));
                        next = Some(base);
                        continue;
                    }
                    None => bail!("{why}; a newer full export goes on"),
                },
            }
            if mirror.last().map(|last| &last.digest) != Some(&link.digest) {
                // Another process has applied others meanwhile, and goes on.
                return Ok(());
            }
            next = self.next(&links, &following, Some(&(link.digest.clone(), link.number)))?;
        }
        Ok(())
    }

    /// The export that comes after where the table is, by its digest and number; `None`: it has all.
    fn next<'l>(
        &self,
        links: &'l [Link],
        following: &HashMap<&str, Vec<&'l Link>>,
        at: Option<&(String, u64)>,
    ) -> anyhow::Result<Option<&'l Link>> {
        let newest_base = newest_base(links);
        let (digest, number) = match at {
            None if newest_base.is_some() || links.is_empty() => return Ok(newest_base),
            None => ("", 0),
            Some((digest, number)) => (digest.as_str(), *number),
        };
        match following.get(digest).map(Vec::as_slice) {
            Some([next]) => return Ok(Some(*next)),
            // A lane that forked goes on from its newest full export; so does one that has a gap here.
            _ if newest_base.is_some_and(|base| base.number > number) => return Ok(newest_base),
            Some(_) => bail!("forked: several exports of {} go on from number {number}", self.place),
            None => {}
        }
        match links.iter().map(|link| link.number).max() {
            Some(last) if last > number => {
                bail!(
                    "gap: {} has exports up to number {last}, none of which goes on from where the table is",
                    self.place
                )
            }
            _ => Ok(None),
        }
    }

    /// The exports of the lane, and whose others there are.
    async fn links(&self, archive: &Arc<Archive>) -> anyhow::Result<(Vec<Link>, BTreeSet<String>)> {
        let (archive, consumer, dataset) = (Arc::clone(archive), self.consumer.clone(), self.dataset.clone());
        spawn_blocking(move || {
            let (mut links, mut others) = (Vec::new(), BTreeSet::new());
            for name in archive.manifests()? {
                let name = name?;
                let Some(manifest) = read(&archive, &name)? else { continue };
                let export = &manifest.export;
                if (&*export.consumer, &export.dataset) == (consumer.as_str(), &dataset) {
                    links.push(Link {
                        name,
                        number: manifest.number,
                        previous: export.previous.clone(),
                        is_base: export.is_base(),
                        digest: manifest.digest,
                    });
                } else if others.len() < MOST_OTHERS {
                    others.insert(format!("{} of {}", plain(&export.dataset), plain(&export.consumer)));
                }
            }
            anyhow::Ok((links, others))
        })
        .await?
        .with_context(|| self.place.to_string())
    }

    async fn apply(&self, archive: &Arc<Archive>, link: &Link, mirror: &mut Mirror) -> anyhow::Result<Taken> {
        let (read_from, name) = (Arc::clone(archive), link.name.clone());
        let manifest = spawn_blocking(move || read(&read_from, &name)).await??;
        let manifest = Arc::new(manifest.with_context(|| format!("{} is gone", link.name))?);
        let (looked_at, of, name) = (Arc::clone(archive), Arc::clone(&manifest), link.name.clone());
        if let Some(why) = spawn_blocking(move || missing(&looked_at, &of, &name)).await?? {
            return Ok(Taken::Unfit(why));
        }
        let open = async || {
            let (archive, manifest, name) = (Arc::clone(archive), Arc::clone(&manifest), link.name.clone());
            spawn_blocking(move || files(&archive, &manifest, &name)).await?
        };
        mirror.apply(&manifest, open).await
    }
}

fn newest_base(links: &[Link]) -> Option<&Link> {
    links.iter().filter(|link| link.is_base).max_by_key(|link| link.number)
}

/// Why an export's files aren't all there, if they are not: retention takes them, and leaves the manifest.
fn missing(archive: &Archive, manifest: &Manifest, name: &str) -> anyhow::Result<Option<String>> {
    for file in &manifest.export.files {
        let path = path_of(archive, name, file)?;
        if !matches!(archive.open_file(&path).with_context(|| path.clone())?, Found::File(..)) {
            return Ok(Some(format!("gap: {path}, which {name} names, is missing")));
        }
    }
    Ok(None)
}

fn path_of(archive: &Archive, name: &str, file: &manifest::File) -> anyhow::Result<String> {
    let path = file.path.as_deref().unwrap_or_default();
    archive.name_of(name, path).with_context(|| format!("{name} names a file outside of its place"))
}

/// The newest full export that is not among those before this one, where all of these are there.
fn beside<'l>(links: &'l [Link], digest: &str) -> Option<&'l Link> {
    let by_digest: HashMap<&str, &Link> = links.iter().map(|link| (link.digest.as_str(), link)).collect();
    let (mut before, mut at) = (HashSet::new(), Some(digest));
    while let Some(digest) = at {
        let link = by_digest.get(digest)?;
        if !before.insert(digest) {
            return None;
        }
        at = link.previous.as_deref();
    }
    let others = links.iter().filter(|link| link.is_base && !before.contains(link.digest.as_str()));
    others.max_by_key(|link| link.number)
}

/// A manifest, if its digest is right.
fn read(archive: &Archive, name: &str) -> anyhow::Result<Option<Manifest>> {
    let Some(text) = archive.text(name).with_context(|| name.to_owned())? else { return Ok(None) };
    let manifest = Manifest::read(&text).with_context(|| name.to_owned())?;
    manifest.check(name, None).with_context(|| name.to_owned())?;
    Ok(Some(manifest))
}

fn files(archive: &Archive, manifest: &Manifest, name: &str) -> anyhow::Result<Vec<Input>> {
    let mut files = Vec::new();
    for file in &manifest.export.files {
        let path = path_of(archive, name, file)?;
        let at_path = || path.clone();
        let found = match archive.open_file(&path).with_context(at_path)? {
            Found::File(_, found) => found,
            Found::Nothing | Found::NoFile => bail!("{path}, which {name} names, is missing"),
        };
        let input: io::Result<_> = Input::new(found, &manifest.export.compression, &file.sha256);
        files.push(input.with_context(at_path)?);
    }
    Ok(files)
}
