//! Names of databases that are taken on a replica, by whoever may write there.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{Node, count, integrity, list, name, replicate};
use engine::{DbName, Error};

/// A primary with one row, and its last record.
fn primary(database: &DbName) -> (Node, engine::Record) {
    let node = Node::primary();
    let client = node.mount();
    client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, 'one')");
    drop(client);
    let position = node.db().drain().unwrap();
    let image = fs::File::open(node.path()).unwrap();
    let imported = node.store.import(database, &mut &image).unwrap();
    let record = node.store.database(database).unwrap().record(imported.txid);
    assert_eq!(position, node.db().position());
    (node, record.unwrap().unwrap())
}

#[test]
fn nothing_is_written_through_a_symbolic_link() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    for (database, link, target) in [
        ("link.db", "link.db", victim.as_path()),
        ("dir/new.db", "dir", outside.path()),
        ("dir/victim", "dir", outside.path()),
        ("dir/deep/new.db", "dir", outside.path()),
    ] {
        let database: DbName = database.parse().unwrap();
        let (source, record) = primary(&database);
        let node = Node::new();
        let link = node.store.files_dir().join(link);
        symlink(target, &link).unwrap();
        let refused = node.store.receive(&database, &mut record.reader());
        let Err(Error::Invalid(reason)) = refused else {
            panic!("{database}: {refused:?}")
        };
        assert!(
            reason.contains("symbolic link") && reason.contains(database.as_str()),
            "{reason}"
        );
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(list(outside.path()), std::slice::from_ref(&victim), "{database}");
        assert!(node.store.database(&database).is_none());
        fs::remove_file(link).unwrap();
        node.store.receive(&database, &mut record.reader()).unwrap();
        drop(source);
    }
}

#[test]
fn a_link_is_no_name_for_an_import() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let node = Node::primary();
    let client = node.mount();
    client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y)");
    symlink(&victim, node.store.files_dir().join("link.db")).unwrap();
    let image = fs::read(node.path()).unwrap();
    let refused = node.store.import(&"link.db".parse().unwrap(), &mut &image[..]);
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn a_file_that_a_replica_has_under_the_name_is_set_aside() {
    let source = Node::primary();
    let client = source.mount();
    client.exec("CREATE TABLE t(x INTEGER PRIMARY KEY, y); INSERT INTO t VALUES(1, 'one')");
    let node = Node::new();
    fs::write(node.path(), "notes of this node").unwrap();
    replicate(&source, &node);
    assert_eq!(node.digest(), source.digest());
    let reader = node.mount();
    assert_eq!(count(&reader), 1);
    integrity(&reader);
    let archive = node.dir.path().join("archive").join(name().as_str());
    let [aside] = &list(&archive)[..] else {
        panic!("{:?}", list(&archive))
    };
    assert_eq!(fs::read(aside.join("database")).unwrap(), b"notes of this node");
}
