//! Putting a stored output where the user wants it: as links to the store's read-only files where the file system can, as
//! copies where it cannot.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::manifest::{MANIFEST, Manifest, sync_folder};
use crate::store::{Store, StoreError, unique};
use crate::task::View;

impl Store {
    /// Makes `to` show the files of the output in `object` (a folder of this store). Each file appears whole or not at
    /// all; files of an earlier export that the output no longer has go, the user's own stay.
    pub fn export(&self, object: &Path, to: &Path) -> Result<(), StoreError> {
        let failed = |path: &Path| StoreError::io("write", path);
        let names = Manifest::names(object)?;
        fs::create_dir_all(to).map_err(failed(to))?;
        for name in &names {
            let (from, place) = (object.join(name), to.join(name));
            let folder = place.parent().unwrap_or(to);
            fs::create_dir_all(folder).map_err(failed(folder))?;
            self.export_file(&from, &place).map_err(failed(&place))?;
        }
        for name in Manifest::names(to)?.into_iter().filter(|name| !names.contains(name) && name != MANIFEST) {
            let place = to.join(name);
            if fs::metadata(&place).is_ok_and(|metadata| metadata.permissions().mode() & 0o222 == 0) {
                fs::remove_file(&place).map_err(failed(&place))?;
            }
        }
        sync_folder(to).map_err(failed(to))
    }

    fn export_file(&self, from: &Path, place: &Path) -> io::Result<()> {
        let source = fs::metadata(from)?;
        if fs::metadata(place).is_ok_and(|there| there.ino() == source.ino() && there.dev() == source.dev()) {
            return Ok(());
        }
        let digest = self.memo().digest(from, View::Whole).ok();
        let draft = place.with_file_name(format!(".export.{}", unique()));
        let put = fs::hard_link(from, &draft).or_else(|_| fs::copy(from, &draft).map(|_| ()));
        let done = put.and_then(|()| fs::rename(&draft, place));
        if done.is_err() {
            let _ = fs::remove_file(&draft);
        }
        // A link changes the file's ctime; without this the next run would hash it again.
        if let Some(digest) = digest {
            self.memo().remember(from, digest);
        }
        done
    }
}
